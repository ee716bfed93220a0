"""Names and functions of the guest's kernel and modules.

kallsyms.py        the kernel's own tables, for drgn
module_symbols.py  the symbol table of a module
site_name.py       the name of a place in the code
symbols.py         all of them
"""
