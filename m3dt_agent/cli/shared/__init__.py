"""What several commands share.

options.py   their options      output.py     what they print
acting.py    who acts           own_code.py   code of the user's own
"""
