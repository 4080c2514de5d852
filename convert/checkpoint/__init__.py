"""Files and bytes: a checkpoint that is read, and the folder that is written."""
