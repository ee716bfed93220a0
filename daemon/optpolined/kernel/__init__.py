"""What the guest's memory says: page tables, our module, symbols, sites, counters.

    attach.attach(memory, registers) --> Attachment(header, space, vmcoreinfo)
        symbols.Symbols.load(...)         names and functions of the kernel, and of ...
        modules.read_modules(...)         ... the modules
        services.Mailbox(...)             what the module does for the host

Everything reads through a ``PhysicalMemory`` and writes nothing.  The guest writes what is read
here: every count, size, offset and loop that comes from it is bounded, and what makes no sense is
one of the errors that `errors.py` draws.
"""
