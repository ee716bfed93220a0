"""Names and functions of the guest's kernel and modules.

kallsyms.py        the kernel's own tables, for drgn
module_symbols.py  the symbol table of a module
symbols.py         all of them
"""
