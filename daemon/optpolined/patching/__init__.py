"""From the forms that sites should have to the bytes in the guest.

patcher.py          forms to changes of sites, and which blocks may be freed
inline_sites.py     the inline parts of sites
static_calls.py     static calls, by key
poke_entries.py     the guest's poke table
arena.py            the arena's blocks, from allocation to reuse
counter_records.py  which counter record belongs to which site
record_clearing.py  counter records, zeroed
recovery.py         what a dead daemon left, and how it is put back
protocol/           the poke protocol, as data; pure
"""
