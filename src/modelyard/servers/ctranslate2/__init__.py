"""A server of our own over CTranslate2, in a process of its own (`__main__`): it translates.

What it serves is `servers.translation`'s; here is how it is started.
"""
