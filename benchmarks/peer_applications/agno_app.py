"""Agno's AgentOS with one agent, a security key, and neither telemetry nor a database."""

import os

from agno.agent import Agent
from agno.models.openai import OpenAIChat
from agno.os import AgentOS

model = OpenAIChat(id="fake", base_url=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])
agent = Agent(id="default", model=model, instructions="You are a helpful assistant.", telemetry=False)
app = AgentOS(agents=[agent], telemetry=False).get_app()
