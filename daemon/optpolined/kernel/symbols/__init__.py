"""Names and functions of the guest's kernel and modules.

sources.py         where the kernel's symbols come from, newest layout first
kallsyms.py        the kernel's own tables, for drgn
module_symbols.py  the symbol table of a module
site_name.py       the name of a place in the code
symbols.py         all of them
"""
