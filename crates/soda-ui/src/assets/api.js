// Requests to the server. A refusal is an Error with the server's sentence.

async function request(method, path, body) {
  const options = { method, headers: {} };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["content-type"] = "application/json";
    options.headers["x-soda-ui"] = "1";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("`soda ui` does not answer: start it again");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

export const get = (path) => request("GET", path);
export const post = (path, body = {}) => request("POST", path, body);
export const put = (path, body) => request("PUT", path, body);
