"""What holds for one worker holds for all of them: limits, budgets, credentials, keys and conversations."""
