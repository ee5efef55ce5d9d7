"""ASGI protection of the Space: routes, upload budget, rate limits, response headers and hardening of Gradio."""
