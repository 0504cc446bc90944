"""A version of the lake goes in; validated rows to learn from and to judge on come out, the same whenever asked."""
