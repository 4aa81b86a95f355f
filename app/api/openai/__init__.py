"""OpenAI's wire format: every agent is a model behind `/v1`."""
