# The studio in a container: not as root, and the container's file system may be read-only.
# How to build and run it: docs/deploy.md.
FROM python:3.12-slim

# An index of PyTorch's CPU builds, as PyTorch's instructions name it. Without one comes what pip
# brings by default, with several gigabytes of CUDA libraries.
ARG TORCH_INDEX=""

ENV PYTHONUNBUFFERED=1 \
    GRADIO_ANALYTICS_ENABLED=False \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    GRADIO_TEMP_DIR=/tmp/gradio \
    HF_HOME=/data/huggingface \
    SST_CACHE=/data/cache \
    SST_HOME=/data/home \
    SST_OUTPUTS=/data/outputs

WORKDIR /studio
COPY requirements.txt constraints.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements.txt -c constraints.txt
COPY . .
RUN python -m compileall -q app.py sst_ui
RUN useradd --uid 1000 --create-home studio && mkdir /data && chown studio /data

USER studio
VOLUME /data
EXPOSE 7860
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/', timeout=5)"]
CMD ["python", "app.py"]
