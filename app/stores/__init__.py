"""Fast memory that workers and replicas share."""
