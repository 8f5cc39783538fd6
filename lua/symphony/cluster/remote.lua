-- Calls to another node's remote port, with errors that say what is wrong there.
local address = require "symphony.cluster.address"
local async = require "symphony.async"
local errors = require "symphony.errors"
local http = require "sym.http"
local json = require "symphony.json"

local M = {}

-- A path as it goes over the wire: every byte but unreserved ones and slashes is percent-encoded.
function M.encode_path(path)
  return (path:gsub("[^%w%-%._~/]", function(c) return ("%%%02X"):format(c:byte()) end))
end

-- One segment of a path: slashes too.
function M.encode_segment(text)
  return (text:gsub("[^%w%-%._~]", function(c) return ("%%%02X"):format(c:byte()) end))
end

-- The same on the way to a worker, of which nobody has typed the address.
local function of_worker(err, at)
  if err.code == "unreachable" or err.code == "timeout" then
    return errors.new(err.code, ("the worker at %s cannot be reached: %s"):format(at, err.message),
      "is it up? `symphony node ls` shows it")
  elseif err.code == "protocol" or err.code == "closed" or err.code == "io" then
    return errors.new("protocol", ("the worker at %s gives no whole answer: %s"):format(at, err.message),
      "the log of its daemon may say more")
  end
  return errors.new(err.code, ("%s: %s"):format(at, err.message), err.hint)
end

-- What went wrong on the way to @at ("host:port"), for a person who may have mistyped it; @role: "worker", or a manager
-- is to be there. Pure.
function M.explain(err, at, role)
  if role == "worker" and err.code ~= "not_found" then return of_worker(err, at) end
  local code = err.code
  local host = address.parse(at, 1)
  if code == "not_found" then
    return errors.new("unreachable", ("%s does not resolve: %s"):format(host or at, err.message),
      "check the name, or give the address as a number")
  end
  if code == "unreachable" then
    return errors.new(code, ("cannot reach %s: %s"):format(at, err.message),
      "is a manager running there, and is this its remote port (27242 unless it was changed)?")
  end
  if code == "timeout" then
    return errors.new(code, ("%s gives no answer: %s"):format(at, err.message),
      "is this the remote port of a manager (27242 unless it was changed)? Does a firewall drop the packets?")
  end
  if code == "protocol" or code == "closed" or code == "io" then
    return errors.new("protocol",
      ("what answers at %s is no symphony manager's remote port: %s"):format(at, err.message),
      "the remote port of a manager is wanted, 27242 unless it was changed; its raft port is another one")
  end
  return errors.new(code, ("%s: %s"):format(at, err.message), err.hint)
end

-- The error in an answer; nil when it is none. @role: as above. Pure.
function M.answer_error(status, doc, at, role)
  if status >= 200 and status < 300 then return nil end
  local e = type(doc) == "table" and doc.error
  if type(e) == "table" and type(e.code) == "string" and type(e.message) == "string" then
    local err = errors.new(e.code:sub(1, 64), json.clean(e.message:sub(1, 2000)),
      type(e.hint) == "string" and e.hint:sub(1, 2000) or nil)
    err.policy = type(e.policy) == "string" and e.policy:sub(1, 64) or nil
    return err
  end
  return errors.new("protocol", ("%s answered with status %d and nothing that could be read"):format(at, status),
    role ~= "worker" and "is this the remote port of a symphony manager?" or nil)
end

-- @opts: at = "host:port", tls, role, method, path (encoded), body (a table: JSON, or text), headers, timeout_ms.
-- Returns the decoded answer, the status and the raw response; nil, err.
function M.call(opts)
  local host, port = address.parse(opts.at)
  if not host then return nil, port end
  local body = opts.body
  local headers = opts.headers or {}
  if type(body) == "table" then
    body = json.encode(body)
    headers["content-type"] = "application/json"
  end
  local response, err = async.await(http.request, { host = host, port = port, tls = opts.tls, role = opts.role,
    method = opts.method, path = opts.path, headers = headers, body = body, timeout_ms = opts.timeout_ms or 10000,
    max_body = 4 * 1024 * 1024 })
  if not response then return nil, M.explain(err, opts.at, opts.role) end
  local doc = response.body and response.body ~= "" and json.decode(response.body) or nil
  err = M.answer_error(response.status, doc, opts.at, opts.role)
  if err then return nil, err, response end
  if doc == nil then
    return nil, errors.new("protocol", ("the answer of %s cannot be read"):format(opts.at))
  end
  return doc, response.status, response
end

return M
