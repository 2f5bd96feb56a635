# `docker build -t packvit .`; docs/clusters.md says how to run it. torch's own wheel brings CUDA.
FROM python:3.12-slim

RUN apt-get update && apt-get install -y --no-install-recommends g++ procps && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/packvit
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[fast,log,plot]'
WORKDIR /work
CMD ["packvit", "--help"]
