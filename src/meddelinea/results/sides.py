"""The sides of a scan that an organ may reach, and the letters that DICOM and radiologists have for them."""

#: Side -> its letter.
LETTERS = {"left": "L", "right": "R", "back": "P", "front": "A", "feet": "F", "head": "H"}
