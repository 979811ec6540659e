"""The status page: one static file, served by `gateway/listing.py`; it uses the control surface only."""
