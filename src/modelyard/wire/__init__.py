"""HTTP/1.1 to engines: connections, their pool, SSE framing and the head of a JSON body.

Called by the gateway's relay and by the runtime's probes. It never retries anything but a connection that
died while it lay idle, never looks into an answer, and knows nothing of models beyond one key of a body.
"""
