"""Tests of the agents that ask no model: `python -m unittest`, or pytest."""

import unittest
from pathlib import Path

from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from desk import desk


class Desk(unittest.TestCase):
    def test_looks_the_order_up(self) -> None:
        # TestModel calls every tool once and answers with what they gave.
        with desk.override(model=TestModel()):
            self.assertIn("order_status", desk.run_sync("Where is order 1017?").output)


class Files(unittest.TestCase):
    def test_every_agent_file_is_an_agent_that_answers(self) -> None:
        for path in sorted(Path("agents").glob("*.yaml")):
            with self.subTest(path.name):
                agent = Agent.from_file(path, model=TestModel())
                self.assertTrue(agent.run_sync("Hello!").output)
