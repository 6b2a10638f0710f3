"""What acts: each file has the activities of one workflow, and the values that they take and give."""
