"""The reconcile: table against index as a workflow, and the schedules on which it runs."""
