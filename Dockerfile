ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY . .
RUN python -m venv /opt/kiwi \
    && /opt/kiwi/bin/pip install --no-cache-dir . \
    # Twisted looks for plugins in this cache, which it could not write later on a read-only file system.
    && /opt/kiwi/bin/python -c "from twisted.application.service import IServiceMaker; from twisted.plugin import getPlugins; list(getPlugins(IServiceMaker))" \
    && /opt/kiwi/bin/pip uninstall --yes pip

FROM python:${PYTHON}-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends iptables \
    && rm -rf /var/lib/apt/lists/* \
    && python -m pip uninstall --yes --root-user-action=ignore pip
COPY --from=build /opt/kiwi /opt/kiwi
ENV PATH=/opt/kiwi/bin:$PATH PYTHONUNBUFFERED=1
# The agent leaves in order on SIGTERM, within 5 seconds.
STOPSIGNAL SIGTERM
ENTRYPOINT ["kiwi"]
