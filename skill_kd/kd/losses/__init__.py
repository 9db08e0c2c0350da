"""The one place a loss is written. Standard library and torch only; a copy of this folder works under any name.

Shape letters: B rows, T response positions, V vocabulary, P prompt positions, L = P + T.
Directions: forward_kl is KL(teacher ‖ student), reverse_kl is KL(student ‖ teacher). p is the teacher, q the student.
"""
