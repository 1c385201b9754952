"""Where many trainings run: processes of this machine."""
