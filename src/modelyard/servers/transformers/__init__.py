"""A server of our own over the Transformers library, in a process of its own (`__main__`).

`__main__` loads in a thread while `api` answers: `asks` reads requests, `answer` and `text` make answers of
tokens. `loading` makes the model; `weights`, and on the CPU `host_weights` over `pages`, hold it; `batching`
and `speculation` generate, `drawing` chooses tokens, `vectors` embeds what `gathering` gathers of many
requests. Those of them that need torch are imported once the process listens.
"""
