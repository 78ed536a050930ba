"""The host: addresses, firewall, announcements."""
