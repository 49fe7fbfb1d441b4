# The command line and the server on a CPU; how to use it: docs/serving.md.
FROM python:3.11-slim

# PyTorch first, in a layer of its own: it is large and rarely changes. Its own index has builds without CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch==2.13.0

WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir '.[serve]'

RUN useradd --uid 1000 --create-home meddelinea && install -d -o meddelinea -g meddelinea /data
USER meddelinea
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["meddelinea"]
CMD ["--help"]
