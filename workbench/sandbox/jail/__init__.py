"""What runs on the far side: the supervisor process, the walls it builds, and the interpreter that runs the code.

Standard library only: the supervisor is started with ``-I -S`` and sees no installed package.
"""
