"""What the notebooks show: studies with the simulator, questions to traces, and their pictures.

A cell of a notebook calls one or two of these functions; nothing is computed in cells. Only this
package imports matplotlib (extra ``notebooks``).
"""
