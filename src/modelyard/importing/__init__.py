"""Configurations made from the set-ups of other servers: llama-swap's file, Ollama's model store.

Called by the command line. An import reads files and changes none of them; what it cannot take over it names,
with its path, and never drops in silence. What it makes is accepted by the own loader before anyone sees it.
"""
