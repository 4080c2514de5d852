"""What is asked of a tree of prompts: continuations of all, or the likelihood of many continuations of one."""
