"""All losses are defined here. The folder imports only torch and the standard library; a copy works under any name.

Shape letters: B rows, T response positions, V vocabulary, P prompt positions, L = P + T.
Directions: forward_kl is KL(teacher ‖ student), reverse_kl is KL(student ‖ teacher). p is the teacher, q the student.
"""
