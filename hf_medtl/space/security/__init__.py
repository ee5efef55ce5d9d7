"""ASGI protection of the Space: routes, upload budget, rate limits and response headers."""
