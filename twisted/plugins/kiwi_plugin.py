"""Has C{twistd} know C{kiwi}."""

from twisted.application.service import ServiceMaker

kiwi = ServiceMaker("Kiwi", "kiwi.tap", "Public IP addresses for Kubernetes Services", "kiwi")
