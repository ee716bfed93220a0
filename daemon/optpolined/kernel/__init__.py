"""What the guest's memory says: page tables, our module, symbols, sites, counters.

    module/attachment.attach(memory, registers) --> Attachment(header, space, vmcoreinfo)
        module/module_list.read_modules(...)  the modules that are loaded
        module/mailbox.Mailbox(...)           what our module does for the host
        symbols/symbols.Symbols.load(...)     names and functions of the kernel and of modules
        sites/scan.scan(...)                  the sites in their text

Everything reads through a ``PhysicalMemory`` and writes nothing.  The guest writes what is read
here: every count, size, offset and loop that comes from it is bounded, and what makes no sense is
one of the errors that `errors.py` draws.
"""
