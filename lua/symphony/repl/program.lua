-- Code that is run as a program by `symphony lua`, and what comes back. Most such programs are short: nothing is loaded
-- here that they do not need.
local errors = require "symphony.errors"
local lines = require "symphony.lines"
local sys = require "sym.sys"

local M = {}

--- Tells of an error: of one in the code with its traceback.
function M.complain(ctx, err)
  if ctx.json or not err.trace then
    ctx.err(require("symphony.cli.render").error(errors.new(err.code, err.message, err.hint), ctx))
  else
    ctx.err(err.trace .. "\n" .. (err.hint and "  hint: " .. err.hint .. "\n" or ""))
  end
end

local function text_of(message, kind)
  return message[kind] or message[kind .. "64"] and require("sym.crypto").unbase64(message[kind .. "64"])
end

local KEPT = { "more", "session", "exit", "ended" }

--- A function that takes the answer to POST /v1/lua in chunks, and prints it by way of ctx.out and ctx.err. What else
--- it says is kept in @seen: exit, ended, more, session, and late, the error that came with `more`: the code may only
--- be unfinished. seen.stopped: it was cancelled here, which is no news.
function M.receiver(ctx, seen)
  return lines.of(function(message)
    local out, err = text_of(message, "out") or message.result, text_of(message, "err")
    if out then
      ctx.out(out)
    elseif err then
      ctx.err(err)
    elseif message.note then
      ctx.err(message.note .. "\n")
    elseif message.error and not seen.more and not (seen.stopped and message.error.code == "canceled") then
      M.complain(ctx, message.error)
    end
    seen.late = message.error or seen.late
    for _, name in ipairs(KEPT) do seen[name] = message[name] or seen[name] end
  end)
end

local function words(list)
  return #list > 0 and list or nil
end

--- The request for the program that @args of the command line name: {eval, script, arguments}. nil when they name none
--- and standard input is @interactive; nil, err for a file that cannot be read.
function M.request(args, interactive)
  if args.eval then
    return { code = args.eval, name = "=-e", args = words { args.script, table.unpack(args.arguments) } }
  elseif not args.script and interactive then
    return nil
  end
  local name = "=stdin"
  local code, err
  if args.script and args.script ~= "-" then
    name = "@" .. args.script
    code, err = sys.read_file(args.script)
    if not code then return nil, err end
  else
    code = io.read("a")
  end
  return { code = (code:gsub("^#[^\n]*", "")), name = name, args = words(args.arguments) }
end

return M
