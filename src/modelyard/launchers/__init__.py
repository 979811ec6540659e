"""Launchers: where instances run. `base` is the contract."""
