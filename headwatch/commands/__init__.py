"""The commands of the command line: each declares its options and runs.

Declaring imports nothing heavy; what a command needs is imported after its options have been checked.
"""
