"""
etcd's v3 API in memory, as the JSON gateway of etcd 3.4, 3.5 and 3.6 serves it; as far as Kiwi relies on it, and some
way beyond. L{tests.fakes.etcd3tests} compares it with the real ones.

It has no transactions within transactions, no sorting, no progress that is told unasked, and of the administration of
users as much as it takes to have some.
"""

from .cluster import ELECTION, PASS, FakeEtcd3
from .member import CANCEL, NOTICE, TIMEOUT, Member
from .store import KeyValue, Lease, Store

__all__ = ["CANCEL", "ELECTION", "NOTICE", "PASS", "TIMEOUT", "FakeEtcd3", "KeyValue", "Lease", "Member", "Store"]
