"""The sites in the guest's text.

thunks.py           where a branch must lead to be a site
scan.py             calls and jumps to the thunks, confirmed by decoding
exclusions.py       what must not be patched
declarations.py     what code that was built with the gcc plugin says of itself
declared_inline.py  inline sites by these declarations
inline_part.py      compare and branch of an inline site
static_calls.py     the places of static calls
attribution.py      which site made a call that a census has counted
"""
