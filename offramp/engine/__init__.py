"""Where many trainings run: processes of this machine, or tasks of a Ray cluster."""
