// What the page asks of the server. The token is kept for this tab only.

let token = sessionStorage.getItem("token");

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function setToken(value) {
  token = value;
  sessionStorage.setItem("token", value);
}

function headers() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

function reason(status, text) {
  try {
    const detail = JSON.parse(text).detail;
    return typeof detail === "string" ? detail : `the server refused the request (${status})`;
  } catch {
    return `the server answered with an error (${status})`;
  }
}

async function ask(path, method = "GET", body = undefined) {
  let response;
  try {
    response = await fetch(path, { method, headers: headers(), body });
  } catch {
    throw new ServerError(0, "the server does not answer; is it running?");
  }
  if (!response.ok) throw new ServerError(response.status, reason(response.status, await response.text()));
  return response;
}

const json = async (path, method) => (await ask(path, method)).json();

/** @type {any} what the server says of itself */
export let about;
export async function info() {
  about = await json("api/info");
  return about;
}

export const jobs = () => json("api/jobs");
export const datasets = () => json("api/datasets");
export const learnings = () => json("api/jobs?kind=learning");
export const learn = (model) => json(`api/learnings?model=${encodeURIComponent(model)}`, "POST");
export const again = (id, model) => json(`api/jobs/${id}/again?model=${encodeURIComponent(model)}`, "POST");
export const job = (id) => json(`api/jobs/${id}`);
export const cancel = (id) => json(`api/jobs/${id}/cancel`, "POST");
export const remove = (id) => ask(`api/jobs/${id}`, "DELETE");
export const compare = (id, earlier) => json(`api/jobs/${id}/comparison/${earlier}`);
export const file = (id, name) => ask(`api/jobs/${id}/files/${name}`);
export const surfaces = async (id) => (await ask(`api/jobs/${id}/surfaces`)).arrayBuffer();

export const thumbnail = async (id) => (await ask(`api/jobs/${id}/thumbnail`)).blob();

/** @param {string} id of the job whose mask it was @param {Blob} mask gzipped NIfTI @param {string} comment */
export async function correct(id, mask, comment) {
  const form = new FormData();
  form.append("mask", mask, "mask.nii.gz");
  form.append("comment", comment);
  return (await ask(`api/jobs/${id}/corrections`, "POST", form)).json();
}

/**
 * A file as it arrives.
 * @param {string} id @param {string} name @param {(bytes: number) => void} onProgress with the bytes of each piece
 * @returns {Promise<ArrayBuffer>}
 */
export async function bytes(id, name, onProgress) {
  const response = await file(id, name);
  const pieces = [];
  const reader = response.body.getReader();
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    pieces.push(piece.value);
    onProgress(piece.value.length);
  }
  return new Blob(pieces).arrayBuffer();
}

// Uploads by XMLHttpRequest, which tells how much has been sent; fetch does not. Returns {done, abort}.
export function upload(scan, modality, model, onProgress) {
  const request = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onload = () =>
      request.status === 201
        ? resolve(JSON.parse(request.responseText))
        : reject(new ServerError(request.status, reason(request.status, request.responseText)));
    request.onerror = () => reject(new ServerError(0, "the upload broke off; the file may be larger than the server takes"));
    request.onabort = () => reject(new ServerError(0, "upload cancelled"));
    request.open("POST", `api/jobs?${new URLSearchParams(modality ? { model, modality } : { model })}`);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(scan);
  });
  return { done, abort: () => request.abort() };
}
