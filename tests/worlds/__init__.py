"""Small worlds that a daemon lives in: each serves what the alias says, tells how things came out, and knows the truth.

They use what anybody outside has: the command, the port, MLflow, and files of events. `life` plays one, `truth` makes
what happens in it, `table` lists them; `make worlds` plays them all.
"""
