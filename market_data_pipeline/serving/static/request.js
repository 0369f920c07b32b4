// Requests with a time limit: a server that hangs is reported as one that cannot be reached is.

export const PATIENCE_SECONDS = 10; // a page takes less than one; a busy server says so after five

// Return what `read` makes of the response to a GET.
export async function request(url, read, options = {}) {
  const controller = new AbortController();
  const timer = setTimeout(() => controller.abort(new DOMException("too slow", "TimeoutError")), PATIENCE_SECONDS * 1000);
  try {
    return await read(await fetch(url, { ...options, signal: controller.signal }));
  } catch (error) {
    if (error.name === "TimeoutError") throw new UnreachableError(`The API has not answered for ${PATIENCE_SECONDS} s.`);
    if (error instanceof TypeError) throw new UnreachableError("The API cannot be reached.");
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

export class UnreachableError extends Error {}
