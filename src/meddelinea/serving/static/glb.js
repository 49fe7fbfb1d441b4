// Reads the surfaces that the server sends as GLB, and writes one as STL.

/**
 * @typedef {object} Surface
 * @property {string} name of the organ
 * @property {Float32Array} points x, y, z of each in the scanner's millimetres: to the patient's right, front and head
 * @property {Uint32Array} triangles three points each
 */

/** @param {ArrayBuffer} buffer @returns {Surface[]} */
export function readSurfaces(buffer) {
  const view = new DataView(buffer);
  const length = view.getUint32(12, true);
  const { nodes, meshes, accessors, bufferViews } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 20, length)));
  const start = 20 + length + 8;
  const part = (/** @type {number} */ index, /** @type {any} */ Kind, /** @type {number} */ size) =>
    new Kind(buffer, start + bufferViews[accessors[index].bufferView].byteOffset, accessors[index].count * size);
  return nodes
    .filter((/** @type {any} */ node) => node.mesh !== undefined)
    .map((/** @type {any} */ node) => {
      const [{ attributes, indices }] = meshes[node.mesh].primitives;
      const metres = part(attributes.POSITION, Float32Array, 3);
      const points = new Float32Array(metres.length); // glTF: metres, y up, z to the front
      for (let at = 0; at < metres.length; at += 3) {
        points[at] = -1000 * metres[at];
        points[at + 1] = 1000 * metres[at + 2];
        points[at + 2] = 1000 * metres[at + 1];
      }
      return { name: node.name, points, triangles: part(indices, Uint32Array, 1) };
    });
}

/**
 * Binary STL in the coordinates of DICOM and 3D Slicer: millimetres to the left, back and head.
 * @param {Surface} surface @returns {Blob}
 */
export function asStl({ points, triangles }) {
  const count = triangles.length / 3;
  const view = new DataView(new ArrayBuffer(84 + 50 * count));
  [..."SPACE=LPS"].forEach((letter, index) => view.setUint8(index, letter.charCodeAt(0)));
  view.setUint32(80, count, true);
  for (let face = 0, at = 84; face < count; face++, at += 50) {
    const corners = [0, 1, 2].map((corner) => {
      const place = 3 * triangles[3 * face + corner];
      return [-points[place], -points[place + 1], points[place + 2]];
    });
    const [u, v] = [1, 2].map((corner) => corners[corner].map((value, axis) => value - corners[0][axis]));
    const normal = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
    const length = Math.hypot(...normal) || 1;
    [...normal.map((value) => value / length), ...corners.flat()].forEach((value, index) => view.setFloat32(at + 4 * index, value, true));
  }
  return new Blob([view], { type: "model/stl" });
}
