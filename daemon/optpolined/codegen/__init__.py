"""Turns the forms of a site into machine code, and machine code into forms.

- ``forms``: what can stand at a site; ``check``: which of these have code.
- ``source``: the code of each form; ``template``: assembles it once for each shape (keystone).
- ``assemble``: a form becomes the bytes of a block; a site's call or jmp gets another target.
- ``listing``: machine code for people.
- ``decode``, ``parse``: turn the bytes of a block into a form again (capstone), and verify what was
  assembled.
- ``errors``: the tree of ``CodegenError``.

A block is position-dependent and immutable.  All of this is pure: bytes and addresses go in, bytes
and forms come out, and nothing here knows where the guest's memory is.
"""
