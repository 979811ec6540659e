"""Engines: what to run. One adapter per engine, pure functions; `base` is the contract."""
