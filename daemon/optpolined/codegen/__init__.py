"""Machine code for the forms of a site, and the way back.

- ``forms``: what can stand at a site; ``check``: which of them there is code for.
- ``source``: what code each form is; ``template``: assembled once for each shape (keystone).
- ``assemble``: a form becomes the bytes of a block; a site's call or jmp gets another target.
- ``listing``: machine code for people.
- ``decode``, ``parse``: the bytes of a block become a form again (capstone); what was assembled is
  verified.
- ``errors``: the tree of ``CodegenError``.

A block is position-dependent and immutable.  All of this is pure: bytes and addresses go in, bytes
and forms come out, and nothing here knows where the guest's memory is.
"""
