"""What training minimises: a file per objective, and the table of them.

A new objective is a file with a subclass of `Objective` and an entry of `OBJECTIVES`.
"""
