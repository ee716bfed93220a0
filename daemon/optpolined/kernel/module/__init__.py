"""What optpoline.ko shares with the host (guest/module/optpoline_abi.h).

attachment.py  where it lies, found in the guest's page tables
abi.py         the layout of all structures
header.py      the header, checked
mailbox.py     requests to the module
poke_table.py  which sites were ever patched
counters.py    per-CPU records, as arrays
census.py      per-CPU slots of a census, added up
module_list.py the modules that are loaded, as it lists them
guards.py      whether the guest allows its text to be changed
"""
