"""The settings: every knob, read once from the environment and `.env`.

Only those who start the house and open it read them; everything below takes plain values.
"""

from app.config.display import SettingRow, describe, example_env, mask_url, meanings
from app.config.loading import export_foreign_variables, load_settings
from app.config.settings import Settings

__all__ = [
    "SettingRow",
    "Settings",
    "describe",
    "example_env",
    "export_foreign_variables",
    "load_settings",
    "mask_url",
    "meanings",
]
